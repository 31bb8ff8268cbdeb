"""Earlier turns of conversations: questions of everyday subjects, with their answers, short and long."""

from __future__ import annotations

from collections.abc import Mapping

from bakeout.models.data.forms.kinds import Use

# A user's message, and what the assistant said.
Turn = tuple[str, str]

TURNS: Mapping[Use, tuple[Turn, ...]] = {
    "widening": (
        ("Hello!", "Hello! How can I help you today?"),
        ("What is the capital of Portugal?", "The capital of Portugal is Lisbon."),
        (
            "How do I get red wine out of a tablecloth?",
            "Blot the stain with a clean cloth, do not rub it. Pour cold sparkling water over it, sprinkle salt on the "
            "damp spot and let it stand for half an hour. Then wash the cloth as usual. For white linen, a little "
            "hydrogen peroxide helps.",
        ),
        ("Can you recommend a good name for a dog?", "How about Bruno, Luna, or Pepper?"),
        ("Who painted the Mona Lisa?", "Leonardo da Vinci painted it in the early sixteenth century."),
        (
            "What should I wear to an outdoor wedding in autumn?",
            "A midi dress with long sleeves or a suit in a warm colour works well. Bring a shawl or a light coat, as "
            "evenings get cold, and choose block heels or flat shoes that do not sink into the grass.",
        ),
        ("Why is the sky blue?", "Air scatters blue light more strongly than red light, so we see it from all sides."),
        ("I feel a bit tired today.", "I am sorry to hear that. A short walk or an early night may help."),
        (
            "Give me some ideas for a birthday party at home.",
            "- a film night with popcorn\n- a cooking contest\n- a board game tournament\n- a treasure hunt in the "
            "garden\n- an evening of karaoke",
        ),
        ("What does the word 'serendipity' mean?", "It means finding something good without looking for it."),
        (
            "How do I keep basil alive in my kitchen?",
            "Put it in a bright spot, water it from below whenever the soil feels dry, and do not let water stand in "
            "the saucer. Cut whole tips just above a pair of leaves, so that the plant grows bushier.",
        ),
        ("Which animal sleeps the most?", "Koalas are known to sleep for most of the day."),
        ("Tell me a joke.", "Why did the scarecrow win a prize? Because he was outstanding in his field."),
        (
            "What is the difference between jam and marmalade?",
            "Jam is made of whole or crushed fruit of any kind. Marmalade is made of citrus fruit, and it contains "
            "pieces of the peel, which give it a slightly bitter taste.",
        ),
        ("Is it safe to drink tap water in Norway?", "Yes, tap water is clean and tastes good all over the country."),
        (
            "Could you write a short thank-you note to my neighbour?",
            "Dear neighbour, thank you so much for looking after our cat. We are very grateful. Warm regards",
        ),
        ("What's a synonym of 'happy'?", "Cheerful."),
        (
            "I would like to start running. Any tips?",
            "Start slowly and alternate between walking and running. Three times a week is enough in the beginning. "
            "Wear proper running shoes, warm up for a few minutes, and rest when something hurts. It helps to run with "
            "a friend.",
        ),
        ("Which language is spoken in Brazil?", "Portuguese."),
        ("Who wrote 'Pride and Prejudice'?", "Jane Austen wrote it."),
        (
            "How does a rainbow form?",
            "Sunlight enters raindrops, is bent, reflected inside and bent again on its way out. Each colour bends by "
            "a slightly different angle, and so the white light is spread into a band of colours.",
        ),
        ("My sister is moving to Canada.", "That is exciting! Do you know which city she is moving to?"),
        ("What can I cook with leftover rice?", "Fried rice with vegetables and an egg is quick and always works."),
        ("Are tomatoes fruits?", "Botanically they are berries, but in the kitchen they are used as vegetables."),
        (
            "Plan a day in Rome for me.",
            "Begin in the morning at the Colosseum and walk through the Forum. Have lunch in Trastevere, then see the "
            "Pantheon and Piazza Navona. In the evening, throw a coin into the Trevi Fountain and enjoy a gelato on "
            "the Spanish Steps.",
        ),
        ("What do owls eat?", "Mostly mice, voles and insects, and some also catch small birds."),
        ("Do you like music?", "I do not hear music as you do, but I enjoy talking about it. What do you listen to?"),
        (
            "How do I write a good cover letter?",
            "Address a person by name, say in the first paragraph which job you want and why, and give examples of "
            "what you have achieved that fit the job. Keep it to a single page and have somebody check it.",
        ),
        ("What is the opposite of 'ancient'?", "Modern."),
        ("Why do cats purr?", "They purr when they are content, and sometimes to calm themselves."),
        ("What's the weather like in spring in Japan?", "It is mild, with some rain, and the cherry trees bloom."),
        (
            "Can you explain what inflation is?",
            "Inflation means that prices in general rise over time, so that money buys less than before. It may come "
            "from strong demand, from higher costs of production, or from more money in circulation.",
        ),
        ("Which planet is known as the red planet?", "Mars."),
        ("I cannot decide between tea and coffee.", "Tea for calm, coffee for energy. How do you want to feel?"),
        ("What is origami?", "The Japanese art of folding paper into figures."),
        (
            "How can I improve my handwriting?",
            "Slow down, hold the pen loosely, and practise the basic strokes for a few minutes each day. Lined paper "
            "keeps the letters even. Copying a text that you like makes it less boring.",
        ),
        ("Where do penguins live?", "Nearly all of them live in the southern half of the world."),
        ("Suggest a title for my blog about gardening.", "'Dirt Under My Nails'."),
        ("How should I store bread?", "In a paper bag or a bread box at room temperature, never in the refrigerator."),
        ("What is a haiku?", "A short Japanese poem in three lines, often about nature."),
        ("Good evening.", "Good evening! What would you like to talk about?"),
        (
            "Who was Marie Curie?",
            "A physicist and chemist who did pioneering work on radioactivity and won two Nobel Prizes.",
        ),
    ),
    "testing": (
        ("Hi, are you there?", "Yes, I am here. What can I do for you?"),
        ("What is the capital of Hungary?", "It is Budapest."),
        (
            "How do I remove candle wax from a carpet?",
            "Let the wax harden, for example under a bag of ice, and scrape off as much as you can. Lay a paper towel "
            "over the rest and go over it with a warm iron, so that the paper soaks up the wax. Repeat this.",
        ),
        ("Suggest a name for a small bakery.", "'The Morning Crumb' would be charming."),
        ("Who composed the 'Moonlight Sonata'?", "Ludwig van Beethoven."),
        (
            "What should I pack for a weekend at the sea?",
            "Take swimwear, a towel, sun cream, a hat and sandals. Add a light jacket for windy evenings, a book and a "
            "bottle of water. If you like walking, a pair of closed shoes is useful too.",
        ),
        ("Why do leaves turn red in autumn?", "Their green pigment breaks down, and red and yellow ones show."),
        ("I had a wonderful day.", "How lovely! What made it so good?"),
        (
            "What could I give my father for his retirement?",
            "- a good pair of walking boots\n- a subscription to his favourite magazine\n- a weekend trip for two\n- a "
            "photo album of the family\n- a course in something he always wanted to try",
        ),
        ("What does 'ephemeral' mean?", "Lasting only for a very short time."),
        (
            "My orchid has lost its flowers. What now?",
            "That is normal. Cut the stem above the second node, keep the plant in bright shade, and water it once a "
            "week. Give it a little fertiliser. With cooler nights it will usually bloom again after some months.",
        ),
        ("What is the fastest land animal?", "The cheetah."),
        ("Do you know a riddle?", "What has hands but cannot clap? A clock."),
        (
            "What's the difference between a frog and a toad?",
            "Frogs have smooth, moist skin and long legs for jumping, and they stay close to water. Toads have dry, "
            "warty skin and shorter legs, and they can live farther away from it.",
        ),
        ("Do I need a visa for a holiday in Iceland?", "That depends on your passport. Citizens of the EU do not."),
        (
            "Write a short invitation to a barbecue.",
            "Dear friends, the grill is ready. Come to our garden on Saturday and bring a good appetite!",
        ),
        ("Another word for 'brave'?", "Courageous."),
        (
            "How can I sleep better?",
            "Go to bed and get up at regular times, keep the bedroom dark and cool, and put the phone away well before "
            "you lie down. Avoid coffee in the afternoon. Reading or quiet music helps many people to unwind.",
        ),
        ("Which ocean lies between Europe and America?", "The Atlantic."),
        ("Who wrote 'The Old Man and the Sea'?", "Ernest Hemingway did."),
        (
            "How do bees make honey?",
            "They collect nectar from flowers and carry it to the hive. There it is passed from bee to bee, which "
            "changes its sugars, and stored in cells. The bees fan it with their wings until it is thick, and seal it.",
        ),
        ("We adopted a kitten last week.", "Congratulations! Has it settled in already?"),
        ("What goes well with mushrooms?", "Garlic, parsley, cream, and a slice of toasted bread."),
        ("Is a whale a fish?", "No, whales are mammals: they breathe air and nurse their young."),
        (
            "Describe a perfect picnic.",
            "A blanket in the shade of an old tree, a basket with fresh bread, cheese, cherries and lemonade, a light "
            "breeze, and good friends with nowhere else to be. Somebody has brought a guitar, and nobody looks at a "
            "phone.",
        ),
        ("What sound does a donkey make?", "It brays."),
        ("Which season do you prefer?", "I have no seasons of my own, but many people love late spring."),
        (
            "How do I prepare for a job interview?",
            "Read about the company, practise a short introduction of yourself, and think of examples that show what "
            "you can do. Prepare a few questions of your own. Choose your clothes the evening before, and be early.",
        ),
        ("What's the opposite of 'generous'?", "Stingy."),
        ("Why do dogs wag their tails?", "To show excitement and to communicate with others."),
        ("How cold does it get in Helsinki in winter?", "Well below freezing, with snow for several months."),
        (
            "What is photosynthesis?",
            "It is the process by which plants use sunlight to turn water and carbon dioxide into sugar. Oxygen is "
            "released along the way. It takes place in the green parts of the plant.",
        ),
        ("Which is the largest desert?", "Antarctica, if cold deserts count; otherwise the Sahara."),
        ("Should I read or watch television tonight?", "Read a chapter first; the television will wait."),
        ("What is calligraphy?", "The art of beautiful writing."),
        (
            "How can I learn to play the guitar?",
            "Begin with a few open chords and change slowly between them. Play simple songs that you like, a little "
            "every day rather than long at once. Your fingertips will hurt at first, but that passes.",
        ),
        ("Where do kangaroos come from?", "From Australia and New Guinea."),
        ("Give me a slogan for a bookshop.", "'Open a book, and the door stays open.'"),
        ("How do I peel garlic quickly?", "Crush the clove with the flat of a knife, and the skin slips off."),
        ("What is a sonnet?", "A poem of fourteen lines with a fixed rhyme scheme."),
        ("Good morning!", "Good morning! How may I help?"),
        ("Who was Florence Nightingale?", "An English nurse who reformed hospitals and founded modern nursing."),
    ),
}
